"""The files in deploy/, run in the form that one machine allows."""
