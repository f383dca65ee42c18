"""The nodes are processes of this machine."""
