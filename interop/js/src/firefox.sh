#!/bin/sh
# Firefox, which would outlive a driver that is killed, because its WebDriver BiDi has no pipe.
exec setpriv --pdeathsig KILL "${FIREFOX:-/usr/bin/firefox-esr}" "$@"
