"""The networks and what their numbers mean; knows nothing of files, devices, data sets or plots."""
