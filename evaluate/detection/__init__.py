"""Object detection and instance segmentation: detectors, VOC and COCO metrics."""
