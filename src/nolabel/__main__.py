"""`python -m nolabel`, for torchrun."""

from nolabel.cli.main import main

if __name__ == "__main__":  # data-loader processes may import this module again
    main()
