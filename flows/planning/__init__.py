"""Before a training: what it will cost, whether all is well here, and a first study file."""
