"""Weights in the layouts of other programs: names of torchvision, timm, detectron2 and the original MoCo; files."""
