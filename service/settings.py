"""Settings from the environment, prefix ``CDKA_`` (and Ray's own ``RAY_ADDRESS``)."""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """One class for server, pool and runners.

    Raises:
        pydantic.ValidationError: a value is not usable; the message names the variable.
    """

    model_config = SettingsConfigDict(env_prefix="CDKA_", populate_by_name=True)

    home: Path = Field(default=Path(".cdka"), description="Where the embedded server keeps what it makes.")
    database_url: str = Field(default="", description="SQLAlchemy URL; SQLite under CDKA_HOME by default.")
    database_password_file: Path | None = Field(
        default=None, description="A file that holds the password for CDKA_DATABASE_URL, which then need not."
    )
    artifacts_url: str = Field(default="", description="A directory or an fsspec URL; under CDKA_HOME by default.")
    data_dirs: Annotated[list[Path], NoDecode] = Field(
        default_factory=lambda: [Path.cwd()],
        description="Folders, separated as PATH is, that studies may name models and data in.",
    )
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8765
    auth: Literal["on", "off"] = "on"
    lease_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    server_url: str = Field(default="", description="Where clients and runners find the API.")
    token: SecretStr | None = None
    token_file: Path | None = Field(default=None, description="A file that holds the token.")
    ray_address: str | None = Field(default=None, validation_alias="RAY_ADDRESS")
    event_days: Annotated[float, Field(gt=0)] = Field(default=30.0, description="How long events are kept.")
    purge_hours: Annotated[float, Field(ge=0)] = Field(
        default=168.0, description="How long a deleted study is kept before its rows and artifacts go."
    )
    webhook_private: bool = Field(default=False, description="Whether webhooks may call private addresses.")
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(default=32 * 1024 * 1024, description="Largest request.")
    rate_limit: Annotated[int, Field(ge=0)] = Field(
        default=1200, description="Requests a minute of one member's or viewer's token, per replica; 0 for no limit."
    )
    log_format: Literal["json", "text"] = "json"
    maintenance_seconds: Annotated[float, Field(gt=0)] = 5.0
    runner_idle_seconds: Annotated[float, Field(gt=0)] = 60.0
    runner_max_trials: Annotated[int, Field(ge=1)] = 200
    tasks: dict[str, str] = Field(
        default={}, description='Tasks of your own that runners offer, as JSON: {"name": "package.module:Class"}.'
    )
    cache_bytes: Annotated[int, Field(ge=0)] = Field(
        default=50 * 1024**3, description="Most bytes of tokenised data that runners of a machine keep on its disk."
    )
    activation_bytes: Annotated[int, Field(ge=0)] = Field(
        default=8 * 1024**3,
        description="Most bytes on a runner's disk for what frozen lower layers make of the training data.",
    )
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(
        default=60.0, description="Least time between two checkpoints of a trial that does not name its own steps."
    )

    @field_validator("data_dirs", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [Path(part) for part in value.split(os.pathsep) if part]
        return value

    @model_validator(mode="after")
    def _fill(self) -> Settings:
        home = self.home.resolve()
        self.home = home
        self.data_dirs = [d.resolve() for d in self.data_dirs]
        self.database_url = self.database_url or f"sqlite:///{home / 'cdka.db'}"
        if self.database_password_file is not None:
            self.database_url = _with_password(self.database_url, self.database_password_file)
        self.artifacts_url = self.artifacts_url or str(home / "artifacts")
        self.server_url = self.server_url or f"http://{self.host}:{self.port}"
        if self.auth == "off" and not is_loopback(self.host):
            raise ValueError(f"CDKA_AUTH=off is refused on {self.host}: only a loopback address may go without tokens")
        return self

    def read_token(self) -> str | None:
        """The token from ``CDKA_TOKEN``, or from the file that ``CDKA_TOKEN_FILE`` names."""
        if self.token is not None:
            return self.token.get_secret_value()
        if self.token_file is not None:
            return self.token_file.read_text().strip()
        return None


def _with_password(url: str, file: Path) -> str:
    scheme, separator, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    if not separator or not at or not user:
        raise ValueError(
            "CDKA_DATABASE_PASSWORD_FILE is for a CDKA_DATABASE_URL such as postgresql+psycopg://user@host/db"
        )
    if ":" in user:
        raise ValueError("the password is in CDKA_DATABASE_URL and in CDKA_DATABASE_PASSWORD_FILE: give it once")
    try:
        password = file.read_text().strip()
    except OSError as error:
        raise ValueError(f"CDKA_DATABASE_PASSWORD_FILE cannot be read: {error.strerror}") from None
    return f"{scheme}://{user}:{quote(password, safe='')}@{place}"


def explain(error: ValidationError) -> str:
    """What is wrong with the settings, a line for each variable."""
    names = [f"CDKA_{str(e['loc'][0]).upper()}" if e["loc"] else "CDKA_*" for e in error.errors()]
    faults = "\n".join(f"  {name}: {e['msg']}" for name, e in zip(names, error.errors(), strict=True))
    return f"The settings are not valid:\n{faults}"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
