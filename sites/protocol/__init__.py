"""Protocol, the hospital's side: each order ends in one signed statement."""
