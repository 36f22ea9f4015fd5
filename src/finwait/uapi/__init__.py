"""What the kernel hands out → values. One module per header or file, named for it. Bytes in, values out."""
