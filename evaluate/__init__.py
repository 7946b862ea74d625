"""What a backbone is worth, and its weights for other toolkits. Imports data and pretrain."""
