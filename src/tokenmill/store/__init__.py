"""The models on this machine: names, blobs, manifests, Modelfiles and where models are pulled from."""
