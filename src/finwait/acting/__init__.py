"""Acts: a reviewed plan → the journal → the act → a look at what came of it.

`apply` carries out plans, `probe` asks whether peers live, `options` sets options of running programs, `entries`
deletes tracking entries, `sysctls` sets settings; `undo` takes back what can be. All of them find their connections
again by what `identity` says, ask `rights` beforehand, and go through descriptors that `borrowed` lends.
"""
