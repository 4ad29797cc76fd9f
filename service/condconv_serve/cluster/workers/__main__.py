"""What the supervising process starts its children with; see `condconv_serve.cluster.workers.spawning`."""

from condconv_serve.cluster.workers.child import main

if __name__ == "__main__":
    main()
