"""What something costs and keeps, counted while it runs: FLOPs, bytes saved, workspace; and what peers say of it."""
