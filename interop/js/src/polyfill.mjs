// js-libp2p needs Promise.withResolvers, which Node 20 does not have. Modules are evaluated in
// the order of their imports, so this one has to be imported before anything of libp2p.
Promise.withResolvers ??= function withResolvers () {
  const deferred = {}
  deferred.promise = new this((resolve, reject) => Object.assign(deferred, { resolve, reject }))
  return deferred
}
