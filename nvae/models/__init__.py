"""The networks, distributions and likelihoods, independent of files, devices, data sets and plots."""
