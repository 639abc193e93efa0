"""`diffseg profile`: where the time of an image goes. The runtime itself never imports this."""
