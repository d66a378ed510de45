"""Encoder weights in the layouts of this program, torchvision, timm, detectron2 and the original MoCo; their files."""
