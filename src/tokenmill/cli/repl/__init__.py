"""The chat of ``tokenmill run``: what it knows and what its commands do, apart from the terminal and from torch.

``session`` holds the conversation and the settings, ``commands`` the slash commands, ``parameters`` the names that
``/set parameter`` and the flags share, ``lines`` the multi-line input, ``wrap`` the word wrap, ``terminal`` the loop
that joins them to a keyboard and to a model.
"""
