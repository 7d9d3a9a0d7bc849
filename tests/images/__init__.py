"""The images of the control plane and of the worker: built by buildah, and run on the cluster of the tests."""
