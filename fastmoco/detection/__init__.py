"""Transfer of an encoder to detection and segmentation: Faster R-CNN and Mask R-CNN with C4 and FPN."""
