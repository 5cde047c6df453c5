#!/bin/bash
# nibabel 5.4.2, SimpleITK 2.5.3: a NIfTI file whose qform and sform codes are 0 (as label editors and scripts write it) is placed by
# nibabel with x running right to left and the middle of the image at 0; ITK places it with x running left to right, the first voxel
# at 0. So a label without codes beside an image with codes is mirrored left to right for whoever reads both with nibabel, although its
# voxels are stored in the image's order; where the image's field of view is centred, even the corners of both agree.
# Seen: nibabel's affine of a file of 4 x 4 x 4 voxels of 2 mm without codes is diag(-2, 2, 2) with the origin (3, -3, -3); the corners of
# the image, whose sform is diag(2, 2, 2) with the origin (-3, -3, -3), are the same points, and a voxel at x = 0 lies at -3 mm in
# the image and at 3 mm in the label.
set -euo pipefail
cd "$(mktemp -d)"
python3 -m venv env && env/bin/pip install --quiet nibabel==5.4.2 numpy==2.4.6 SimpleITK==2.5.3
env/bin/python - <<'PY'
import nibabel as nib, numpy as np, SimpleITK as sitk
voxels = np.zeros((4, 4, 4), np.uint8); voxels[0] = 1
affine = np.diag([2.0, 2, 2, 1]); affine[:3, 3] = -3
nib.save(nib.Nifti1Image(voxels, affine), "image.nii")
bare = nib.Nifti1Image(voxels, None); bare.header.set_zooms((2, 2, 2)); nib.save(bare, "label.nii")
image, label = nib.load("image.nii"), nib.load("label.nii")
assert (int(label.header["qform_code"]), int(label.header["sform_code"])) == (0, 0)
assert np.allclose(label.affine, [[-2, 0, 0, 3], [0, 2, 0, -3], [0, 0, 2, -3], [0, 0, 0, 1]]), label.affine
corners = [{tuple(np.round(each.affine @ [x, y, z, 1], 6)) for x in (0, 3) for y in (0, 3) for z in (0, 3)} for each in (image, label)]
assert corners[0] == corners[1]
assert (image.affine @ [0, 0, 0, 1])[0] == -3 and (label.affine @ [0, 0, 0, 1])[0] == 3
ras = [nib.as_closest_canonical(each).get_fdata() for each in (image, label)]
assert np.array_equal(ras[0], ras[1][::-1]) and not np.array_equal(*ras)
itk = sitk.ReadImage("label.nii")
assert itk.GetOrigin() == (0, 0, 0) or itk.GetOrigin() == (-0.0, -0.0, 0.0), itk.GetOrigin()
print("as stated: in RAS the label is the image's mirror image; ITK's origin:", itk.GetOrigin(), "direction:", itk.GetDirection()[:1])
PY
