"""Access to hospitals: processes on this machine, workers behind firewalls."""
