"""`diffseg profile`: the time of an image by stage and operator. Only this command imports the package."""
