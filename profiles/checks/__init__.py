"""Whether what a card claims holds: invariances, identities, gradients; and what differs between two."""
