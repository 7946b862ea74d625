"""From images and masks on disk to augmented batches on the device."""
