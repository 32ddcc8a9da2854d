"""Personal data and secrets in text: found, checked, replaced.

`checksums` holds the arithmetic of numbers, `national` one row a kind of national number, `contact` e-mail, phone and
IP addresses, `streets` street addresses, `money` bank accounts and cards, `secrets` keys and passwords; `find` brings
them together, `step` makes a curation step of it.
"""
