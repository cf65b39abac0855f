"""`edgespec bench acceptance` and `bench shapes`: agreement of draft and target."""
