"""How hospitals are reached: processes on this machine, workers behind firewalls."""
