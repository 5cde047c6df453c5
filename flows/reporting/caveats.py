"""What has to stand beside an epsilon: everything that it does not cover."""

from collections.abc import Iterator

from privacy.statements import ReleaseManifest


def caveats(release: ReleaseManifest) -> Iterator[str]:
    """Yield the caveats about the epsilon in a hospital's newest release, each as a sentence's part."""
    if release.plain_releases:
        yield f"{release.plain_releases} releases without privacy in addition"
    if release.noise == "test":
        yield "repeatable test noise: no privacy at all"
    if release.masked is not None and release.masked.honest is not None:
        yield (
            f"it holds for the hospitals' sum, to which {release.masked.honest} of them add their "
            f"noise as agreed; with its own noise alone it would be {release.masked.own_epsilon:.2f}"
        )
