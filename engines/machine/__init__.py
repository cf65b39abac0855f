"""Facts about this computer: hardware, installed software, profiles and energy sensors."""
