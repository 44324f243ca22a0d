"""What a finished configuration is written as: the packed file, bits by layer."""
