"""VPTQ (arXiv 2409.17066): indices into codebooks of weight vectors, chosen under the layer's Hessian."""
