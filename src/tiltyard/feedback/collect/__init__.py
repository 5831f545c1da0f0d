"""The labelling page: annotators judge tasks of the feedback store, an admin sees how far labels can be trusted."""
