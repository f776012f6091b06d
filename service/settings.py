"""Settings from the environment, prefix ``CDKA_`` (and Ray's own ``RAY_ADDRESS``)."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .paths import DataRoots
from .source import source_commit

# A path below which a proxy serves us. No segment is empty or made of dots, so that no link leads to another place.
PREFIX = re.compile(r"(/(?!\.+(/|$))[A-Za-z0-9._~-]+)*")


class Settings(BaseSettings):
    """One class for server, pool and runners.

    Raises:
        pydantic.ValidationError: a value is not usable; the message names the variable.
    """

    model_config = SettingsConfigDict(env_prefix="CDKA_", populate_by_name=True)

    home: Path = Field(
        default=Path(".cdka"), description="The folder of the embedded server: database, artifacts, tokens, logs."
    )
    database_url: str = Field(default="", description="SQLAlchemy URL. Default: SQLite under CDKA_HOME.")
    database_password_file: Path | None = Field(
        default=None, description="A file with the password for CDKA_DATABASE_URL."
    )
    artifacts_url: str = Field(
        default="", description="A folder or an fsspec URL for adapters and checkpoints. Default: under CDKA_HOME."
    )
    data_dirs: Annotated[list[Path], NoDecode] = Field(
        default_factory=lambda: [Path.cwd()],
        description="Folders with models and data, separated as in PATH. Paths in studies are relative to them.",
    )
    host: str = Field(default="127.0.0.1", description="The address that the API listens on.")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(default=8765, description="The port that the API listens on.")
    root_path: str = Field(
        default="",
        description="The path below which a proxy serves the API and the dashboard, such as /cdka. A trusted proxy's "
        "X-Forwarded-Prefix replaces it.",
    )
    trusted_proxies: str = Field(
        default="127.0.0.1,::1",
        validation_alias=AliasChoices("CDKA_TRUSTED_PROXIES", "FORWARDED_ALLOW_IPS"),
        description="Addresses or networks of proxies whose X-Forwarded-For, -Proto and -Prefix headers are used; * is "
        "all.",
    )
    auth: Literal["on", "off"] = Field(
        default="on", description="off needs no tokens; allowed on loopback addresses only."
    )
    lease_seconds: Annotated[float, Field(gt=0, le=86_400)] = Field(
        default=60.0, description="How long a lease lasts without a report."
    )
    server_url: str = Field(
        default="", description="Where clients and runners find the API. Default: CDKA_HOST and CDKA_PORT."
    )
    token: SecretStr | None = Field(default=None, description="The token of clients and runners.")
    token_file: Path | None = Field(default=None, description="A file with the token.")
    ray_address: str | None = Field(
        default=None, validation_alias="RAY_ADDRESS", description="The Ray cluster of the pool. Default: a local one."
    )
    event_days: Annotated[float, Field(gt=0)] = Field(default=30.0, description="Days for which events are kept.")
    purge_hours: Annotated[float, Field(ge=0)] = Field(
        default=168.0, description="Hours after which a deleted study's rows and artifacts are removed."
    )
    secret_key_file: Path | None = Field(
        default=None,
        description="A file with the key that encrypts webhooks' secrets in the database, the same for all replicas: a "
        "line of 32 or more random characters; earlier keys follow as further lines. Default: made in CDKA_HOME.",
    )
    webhook_private: bool = Field(default=False, description="Allow webhooks to call private addresses.")
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=32 * 1024 * 1024,
        description="Largest result of a worker. Other bodies are 1 MiB at most, reports and logs 2 MiB.",
    )
    rate_limit: Annotated[int, Field(ge=0)] = Field(
        default=1200, description="Requests per minute and replica of one member's or viewer's token; 0 is no limit."
    )
    log_format: Literal["json", "text"] = Field(default="json", description="Format of the server's log lines.")
    maintenance_seconds: Annotated[float, Field(gt=0)] = Field(
        default=5.0, description="Seconds between two checks of expired leases and limits."
    )
    runner_idle_seconds: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="Seconds after which a runner without work ends."
    )
    runner_max_trials: Annotated[int, Field(ge=1)] = Field(
        default=200, description="Trials after which a runner is replaced by a fresh process."
    )
    tasks: dict[str, str] = Field(default={}, description='Your own tasks, as JSON: {"name": "package.module:Class"}.')
    cache_bytes: Annotated[int, Field(ge=0)] = Field(
        default=50 * 1024**3, description="Largest size of the tokenised data that a machine keeps on disk."
    )
    activation_bytes: Annotated[int, Field(ge=0)] = Field(
        default=8 * 1024**3,
        description="Largest size on disk of the cached activations of frozen lower layers.",
    )
    checkpoint_seconds: Annotated[float, Field(ge=0)] = Field(
        default=60.0, description="Least time between two checkpoints, unless training.checkpoint_steps is set."
    )

    commit: Annotated[str, Field(pattern=r"^([0-9a-f]{7,64}(-dirty)?)?$")] = Field(
        default="",
        description="The commit of this code, for reports. Default: that of the checkout, or that pip installed from.",
    )

    @field_validator("data_dirs", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [Path(part) for part in value.split(os.pathsep) if part]
        return value

    @field_validator("root_path")
    @classmethod
    def _path(cls, value: str) -> str:
        value = value.rstrip("/")
        if not PREFIX.fullmatch(value):
            raise ValueError("give a path such as /cdka: a slash, then letters, digits, '.', '_', '~' or '-'")
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

    @property
    def data_roots(self) -> DataRoots:
        """The data folders, without what the server keeps for itself."""
        private = [self.home]
        if "://" not in self.artifacts_url:
            private.append(Path(self.artifacts_url))
        if self.database_url.startswith("sqlite:///"):
            private.append(Path(self.database_url.removeprefix("sqlite:///")))
        private += [
            file for file in (self.token_file, self.database_password_file, self.secret_key_file) if file is not None
        ]
        return DataRoots(self.data_dirs, private)

    @property
    def source_commit(self) -> str | None:
        """The commit of the running code, if it is known."""
        return self.commit or source_commit()

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
