"""Random faults on real processes; every answer is compared with the target's."""
