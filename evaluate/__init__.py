"""What a backbone is worth on labelled images, and its weights for other toolkits."""
