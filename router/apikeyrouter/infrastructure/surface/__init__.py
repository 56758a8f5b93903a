"""What SDKs see, over HTTP and in process: paths, requests read, answers and errors written, in each dialect."""
