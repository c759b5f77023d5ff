"""What the rest of the package needs of the machine: files, locks, devices, processes, signals, errors."""
