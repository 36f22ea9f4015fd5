"""Reading TOML: one way for every file that a person writes, and one way to say what is wrong in it. Pure.

What may be written is declared as msgspec structs. ``declared`` tells those declarations (each key, its type in words,
the JSON Schema); ``document`` turns a text, or the options of a command line, into a value of them, or into a
`TomlMistake` with line, key and what would be right; ``lines`` finds where a key stands. Opening the file is
`finwait.files.read`, which is bounded, and as root follows no link of somebody else's and takes no FIFO or device.
"""
