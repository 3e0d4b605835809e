"""The graphdriver protocol over a real socket, as docker's own driver tests ask for it."""
