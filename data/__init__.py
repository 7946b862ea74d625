"""The ground floor: images and masks on disk, geometry, views, device augmentation. Imports no other room."""
