"""Django's own migrations, one at a time: `plan` prints them, `step APP NAME` applies one."""

import os
import sys

import django
from django.conf import settings

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": "127.0.0.1",
            "PORT": os.environ["PGPORT"],
            "USER": os.environ["PGUSER"],
            "NAME": os.environ["PGDATABASE"],
        }
    },
    INSTALLED_APPS=[
        f"django.contrib.{app}"
        for app in ["contenttypes", "auth", "admin", "sessions", "sites", "flatpages", "redirects", "messages"]
    ],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    SITE_ID=1,
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates"}],
    USE_TZ=True,
)
django.setup()

from django.core.management import call_command  # noqa: E402
from django.db import connection  # noqa: E402
from django.db.migrations.executor import MigrationExecutor  # noqa: E402

if sys.argv[1] == "plan":
    executor = MigrationExecutor(connection)
    for migration, _ in executor.migration_plan(executor.loader.graph.leaf_nodes()):
        print(migration.app_label, migration.name)
else:
    call_command("migrate", sys.argv[2], sys.argv[3], verbosity=0, interactive=False)
