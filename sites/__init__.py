"""Inside one hospital: its patients, its training, the one door out."""
