"""The names of other tools, over leases: portpicker, pysys, socket_helper and recipe."""
