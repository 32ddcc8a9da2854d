"""The command line: one thin file a verb, imported only when that verb is called.

A verb parses its flags, calls one function of a lower layer and prints. ``app`` holds the table of verbs and maps
errors to exit statuses, ``output`` the house promise (``--json``, progress, tables), ``repl`` the chat of ``tokenmill
run``.
"""
