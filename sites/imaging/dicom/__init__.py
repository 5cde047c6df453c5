"""DICOM: files of a folder, stacks of images, and the volume of a series."""
