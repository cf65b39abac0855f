"""The command line. It imports the other packages inside its commands only."""
