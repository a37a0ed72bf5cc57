"""The interfaces of other tools, with leased ports: portpicker, pysys, socket_helper and recipe."""
