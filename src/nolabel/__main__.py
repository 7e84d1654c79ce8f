"""`python -m nolabel`, for torchrun."""

from nolabel.cli import main

if __name__ == "__main__":  # data-loader processes may import this module again
    main()
