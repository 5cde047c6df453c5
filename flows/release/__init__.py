"""The release of a model: evidence, approvals, the champion."""
