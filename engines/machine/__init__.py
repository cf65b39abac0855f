"""What this computer is: hardware, installed software, profiles and energy sensors."""
