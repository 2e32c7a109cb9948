"""DICOM: a series in (`series`), masks out (`seg`); files of strangers are read in a child process (`limits`)."""
